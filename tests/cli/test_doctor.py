"""``actscope doctor``: every site with its status, and a conclusion."""


def test_doctor(actscope_cli, model_folder):
    done = actscope_cli("doctor", "--model", model_folder)
    assert done.exit_code == 0, done.output
    for text in ("resid_post", "0-2", "verified", "pooler", "unavailable", "torch", "float32"):
        assert text in done.stdout, text
    assert "can be captured" in done.stdout.splitlines()[-1] or "can be captured" in done.stdout


def test_doctor_says_what_is_missing(actscope_cli, bare_model_folder, tmp_path):
    done = actscope_cli("doctor", "--model", bare_model_folder)
    assert "bos: none" in done.stdout
    assert actscope_cli("doctor", "--model", tmp_path).exit_code == 2


def test_doctor_of_an_adapter(actscope_cli, model_folder, adapter_folder):
    done = actscope_cli("doctor", "--model", model_folder, "--adapter", adapter_folder)
    assert done.exit_code == 0, done.output
    for text in ("tiny-lora@", "someone/another-base", "6 modules", "every site is verified"):
        assert text in done.stdout, text
    assert "adapter" not in actscope_cli("doctor", "--model", model_folder).stdout
    wrong = actscope_cli("doctor", "--model", model_folder, "--adapter", "no/such-adapter")
    assert wrong.exit_code == 2
    assert "local_checkpoints" in wrong.output

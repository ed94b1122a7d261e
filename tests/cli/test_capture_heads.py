"""``actscope capture`` of heads, neurons and patterns."""

from __future__ import annotations

from typing import Any

import torch

from actscope import load_model, open_run


def test_heads_and_patterns_from_the_command_line(
    actscope_cli: Any, model_folder: Any, tmp_path: Any
) -> None:
    out = tmp_path / "r"
    done = actscope_cli(
        "capture", "--prompt", "w1 w2 w3", "--sites", "z.head[0,2],pattern.head[1]",
        "--sites", "blocks.1.mlp.hook_post", "--layers", "0,-1",
        "--model", model_folder, "--out", out,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    run = open_run(out)
    assert {str(s) for s in run.sites} == {
        "blocks.0.z.head[0,2]", "blocks.2.z.head[0,2]", "blocks.0.pattern.head[1]",
        "blocks.2.pattern.head[1]", "blocks.1.mlp_post",
    }  # fmt: skip
    want = load_model(model_folder).capture(["w1 w2 w3"], sites=run.sites)
    for site in run.sites:
        torch.testing.assert_close(run.get(site, example=0), want[site][0])
    shown = actscope_cli("runs", "show", out)
    assert shown.exit_code == 0 and "pattern" in shown.output


def test_a_head_the_model_lacks_is_bad_input(
    actscope_cli: Any, model_folder: Any, tmp_path: Any
) -> None:
    out = tmp_path / "r"
    base = ["capture", "--prompt", "w1", "--model", model_folder, "--out", out]
    done = actscope_cli(*base, "--sites", "z.head[9]")
    assert done.exit_code == 2 and "head out of range" in done.output
    done = actscope_cli(*base, "--sites", "pattern", "--pool", "mean")
    assert done.exit_code == 2 and "cannot pool an attention pattern" in done.output
    assert not out.exists()


def test_entries_of_chosen_heads_are_in_ascending_order(
    actscope_cli: Any, model_folder: Any, tmp_path: Any
) -> None:
    out = tmp_path / "r"
    done = actscope_cli(
        "capture", "--prompt", "w1 w2 w3", "--sites", "pattern.head[2,0],z.head[2,0]",
        "--layers", "1", "--model", model_folder, "--out", out,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    run = open_run(out)
    whole = load_model(model_folder).capture(["w1 w2 w3"], sites="pattern,z", layers=[1])
    pattern, z = (run.get(name, 1, example=0) for name in ("pattern", "z"))
    assert run.site("pattern", 1).parts == run.site("z", 1).parts == (0, 2)
    for entry, head in enumerate((0, 2)):
        torch.testing.assert_close(pattern[entry], whole["pattern", 1][0][head])
        torch.testing.assert_close(z[:, entry], whole["z", 1][0][:, head])

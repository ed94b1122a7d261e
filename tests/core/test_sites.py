"""The names of sites: heads and neurons, both ways."""

from __future__ import annotations

import pytest

from actscope.core.errors import BadInputError, UnknownNameError
from actscope.core.sites import (
    SITE_KINDS,
    Site,
    captured_site,
    expand_sites,
    split_sites,
    takes_layers,
)


@pytest.mark.parametrize(
    ("written", "keys"),
    [
        ("z.3.head[0,5]", ["blocks.3.z.head[0,5]"]),
        ("blocks.3.z.head[5,0]", ["blocks.3.z.head[0,5]"]),
        ("z[0,-1].head[2]", ["blocks.0.z.head[2]", "blocks.3.z.head[2]"]),
        ("z.head[1]", ["blocks.1.z.head[1]", "blocks.2.z.head[1]"]),
        ("pattern[*].head[0:4]", [f"blocks.{i}.pattern.head[0:4]" for i in range(4)]),
        ("mlp_post.2.neuron[9,0:3]", ["blocks.2.mlp_post.neuron[0:3,9]"]),
        ("q.0.head[0,1], k.1", ["blocks.0.q.head[0,1]", "blocks.1.k"]),
        ("blocks.-1.attn.hook_z.head[3]", ["blocks.3.z.head[3]"]),
    ],
)
def test_what_a_user_may_write(written: str, keys: list[str]) -> None:
    sites = expand_sites(written, [1, 2], 4)
    assert [str(site) for site in sites] == keys
    assert [Site.parse(key) for key in keys] == list(sites)
    assert sorted(sites) == sorted(sites, key=lambda s: (s.kind, s.layer, s.parts))


@pytest.mark.parametrize(
    "written", ["z.3.head[]", "z.3.head[a]", "z.3.head[3:1]", "z.3.head[0:999999999]", "z.head[-2]",
                "logits.head[1]", "resid_post.1.neuron[0]", "model.layers.3.head[1]"]
)  # fmt: skip
def test_what_names_no_heads(written: str) -> None:
    with pytest.raises(BadInputError):
        expand_sites(written, [1], 4)


def test_a_choice_finds_its_whole_and_back() -> None:
    some, other = Site("z", 3, parts=(0, 5)), Site("z", 3, parts=(1,))
    assert some.whole == Site("z", 3) and Site("z", 3).whole == Site("z", 3)
    assert captured_site([some], "z", 3) == some
    assert captured_site([some, some.whole], "z", 3) == some.whole
    assert captured_site([some, other], "blocks.3.z.head[1]") == other
    with pytest.raises(UnknownNameError, match="captured site"):
        captured_site([some, other], "z", 3)


def test_layers_left_open() -> None:
    words = {"z": True, "z.head[0,1]": True, "z.3": False, "z[1].head[0]": False, "logits": False}
    assert {word: takes_layers(word) for word in words} == words
    assert split_sites(", ".join(words)) == list(words)


def test_every_kind_has_one_layout() -> None:
    layouts = {kind.name: kind.layout for kind in SITE_KINDS.values()}
    assert layouts["pattern"] == "blocks" and layouts["pooler"] == "example"
    assert {name for name, layout in layouts.items() if layout == "rows"} == (
        set(layouts) - {"pattern", "pooler"}
    )

"""A method string says who takes which decision, with which hyper-parameters."""

from __future__ import annotations

import pytest

from mcbench.composition import compose
from mcbench.errors import BadInput, UnknownName


def test_a_lone_allocator_gets_the_default_quantiser() -> None:
    composition = compose("pmq")
    assert [part.name for part in composition.parts] == ["pmq", "gptq"]


def test_a_lone_quantiser_gets_uniform_widths() -> None:
    assert [part.name for part in compose("hqq").parts] == ["uniform", "hqq"]


def test_settings_reach_the_method_and_its_written_form() -> None:
    composition = compose("pmq( beta=1, alpha = 2 )+rtn")
    assert str(composition).startswith("pmq(alpha=2.0, beta=1.0)+rtn")


def test_the_written_form_reads_back_to_the_same_composition() -> None:
    composition = compose("pmq(beta=1)+hqq", seed=3)
    assert compose(str(composition), seed=3).parts == composition.parts


def test_the_seed_fills_a_seed_field_that_nobody_set() -> None:
    assert compose("random", seed=7).parts[0].settings()["seed"] == 7
    assert compose("random(seed=1)", seed=7).parts[0].settings()["seed"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pmq+fnorm", "both 'pmq' and 'fnorm' allocate"),
        ("none+rtn", "'none' leaves the weights as they are"),
        ("gptq+rtn", "both 'gptq' and 'rtn' quantize"),
        ("pmq(beta)", "as field=value"),
        ("pmq(beta=soft)", "pmq: beta must be float"),
        ("pmq(beta=1", "brackets"),
        ("pmq+", "empty part"),
        ("", "empty part"),
    ],
)
def test_a_string_that_makes_no_sense_says_why(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message.replace("(", r"\(")):
        compose(text)


def test_a_misspelt_setting_is_answered_with_the_nearest() -> None:
    with pytest.raises(UnknownName, match="pmq has no hyper-parameter 'bata'; did you mean 'beta'"):
        compose("pmq(bata=1)")


def test_none_goes_with_a_routing_policy_and_takes_no_quantiser() -> None:
    composition = compose("none+topk(k=1)")
    assert [part.name for part in composition.parts] == ["none", "topk"] and not composition.compresses
    assert composition.policy is not None and composition.policy.settings()["k"] == 1


def test_an_alias_is_the_parts_it_stands_for() -> None:
    assert compose("mc").parts == compose("pmq+gptq+odp").parts
    assert compose("pmq").policy is None


def test_none_stands_alone() -> None:
    composition = compose("none")
    assert [part.name for part in composition.parts] == ["none"] and not composition.compresses

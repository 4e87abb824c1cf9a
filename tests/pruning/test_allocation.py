import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import channel_groups, cost_of, new_spec
from pruning.allocation import Limits, allocate, best, keep_count, select, solve
from pruning.surgery import cut_spec

SPEC = new_spec(20, 10)
GROUPS = channel_groups(SPEC)


def random_scores(seed):
    generator = torch.Generator().manual_seed(seed)
    return {g.name: torch.rand(g.size, generator=generator) for g in GROUPS}


def test_keep_count_is_lis_rule_without_its_rounding_errors():
    assert keep_count(16, 0.1) == 14
    assert keep_count(64, 0.1) == 57
    assert keep_count(10, 0.9) == 1  # int(10 * (1 - 0.9)) is 0
    assert keep_count(64, 0.0) == 64


def test_ratio_zero_keeps_everything():
    for allocation in ("layer", "global"):
        kept = allocate(GROUPS, random_scores(0), 0, allocation, limits=Limits(1, 24))
        assert all(kept[g.name].tolist() == list(range(g.size)) for g in GROUPS)


def test_ties_go_to_the_lower_index():
    assert best(torch.tensor([1.0, 2.0, 1.0, 1.0]), 2).tolist() == [0, 1]


@settings(max_examples=60)
@given(
    ratio=st.floats(0, 0.99),
    allocation=st.sampled_from(["layer", "global"]),
    min_keep=st.sampled_from([1, 3, 0.1, 0.25]),
    round_to=st.sampled_from([1, 4, 8]),
    seed=st.integers(0, 99),
)
def test_allocation_properties(ratio, allocation, min_keep, round_to, seed):
    scores, limits = random_scores(seed), Limits(min_keep, round_to)
    kept = allocate(GROUPS, scores, ratio, allocation, limits)
    again = allocate(GROUPS, scores, ratio, allocation, limits)
    for group in GROUPS:
        index = kept[group.name].tolist()
        assert index == again[group.name].tolist() == sorted(set(index))
        assert limits.floor(group.size) <= len(index) <= group.size
        assert len(index) % round_to == 0 or len(index) == group.size
        own = scores[group.name]
        removed = [i for i in range(group.size) if i not in index]
        if removed:
            assert own[index].min() >= own[removed].max()


def test_global_removes_the_lowest_scores_of_all():
    scores = {g.name: torch.ones(g.size) for g in GROUPS}
    weak = GROUPS[3]
    scores[weak.name][:8] = 0.1
    total = sum(g.size for g in GROUPS)
    kept = allocate(GROUPS, scores, 8 / total, "global")
    assert kept[weak.name].tolist() == list(range(8, weak.size))
    assert all(len(kept[g.name]) == g.size for g in GROUPS if g is not weak)


def test_global_stops_at_the_floor():
    kept = allocate(GROUPS, random_scores(1), 0.99, "global", Limits(0.1))
    assert all(len(kept[g.name]) == max(1, g.size // 10) for g in GROUPS)


def test_one_ratio_per_stage():
    inner, _ = select(GROUPS, [], "inner")
    kept = allocate(inner, random_scores(0), [0.5, 0.25, 0.0])
    sizes = {g.name: len(kept[g.name]) for g in inner}
    assert (sizes["layer1.0.conv1"], sizes["layer2.0.conv1"], sizes["layer3.0.conv1"]) == (
        8,
        24,
        64,
    )
    with pytest.raises(ValueError, match="3 stages"):
        allocate(inner, random_scores(0), [0.5, 0.5])
    with pytest.raises(ValueError, match="allocation layer"):
        allocate(inner, random_scores(0), [0.5, 0.25, 0.0], "global")


def test_stages_are_those_of_the_network_whatever_is_skipped():
    inner, _ = select(GROUPS, ["layer3"], "inner")
    kept = allocate(inner, random_scores(0), [0.5, 0.25, 0.9])
    assert len(kept["layer2.0.conv1"]) == 24
    with pytest.raises(ValueError, match="3 stages"):
        allocate(inner, random_scores(0), [0.5, 0.25])


def test_equal_drop_removes_where_it_costs_least():
    inner, _ = select(GROUPS, [], "inner")
    cheap, dear = inner[0].name, inner[-1].name
    drops = {g.name: {"0.5": 5.0, "0.9": 20.0} for g in inner}
    drops[cheap], drops[dear] = {"0.5": 0.0, "0.9": 1.0}, {"0.5": 30.0, "0.9": 60.0}
    kept = allocate(inner, random_scores(0), 0.4, "sensitivity", sensitivity=drops)
    share = {g.name: 1 - len(kept[g.name]) / g.size for g in inner}
    assert share[cheap] > 0.85 > 0.2 > share[dear]
    total = sum(g.size for g in inner)
    assert sum(map(len, kept.values())) == pytest.approx(0.6 * total, abs=len(inner))


def test_a_skipped_block_keeps_the_streams_that_run_through_it():
    chosen, protected = select(GROUPS, ["layer1.1"], "all")
    assert protected["layer1.residual"] == "--skip layer1.1"
    assert "layer3.residual" in {g.name for g in chosen}


def test_names_protect_whole_path_components():
    groups = channel_groups(new_spec(110, 10))
    chosen, protected = select(groups, ["layer1.1"], "inner")
    assert "layer1.1.conv1" in protected
    assert "layer1.10.conv1" in {g.name for g in chosen}
    with pytest.raises(ValueError, match="layer9"):
        select(groups, ["layer9"], "inner")


@settings(max_examples=30)
@given(
    target=st.floats(0.35, 1.0),
    allocation=st.sampled_from(["layer", "global"]),
    what=st.sampled_from(["macs", "params"]),
)
def test_targets_are_met_to_the_granularity_of_the_widths(target, allocation, what):
    spec = new_spec(18, 100)
    groups, _ = select(channel_groups(spec), [], "all")
    generator = torch.Generator().manual_seed(0)
    scores = {g.name: torch.rand(g.size, generator=generator) for g in groups}

    def share(ratio):
        cost = cost_of(cut_spec(spec, allocate(groups, scores, ratio, allocation)))
        return getattr(cost, what) / getattr(cost_of(spec), what)

    ratio = solve(share, target, what)
    step = max(abs(share(ratio - 1e-5) - share(ratio)), abs(share(ratio + 1e-5) - share(ratio)))
    assert abs(share(ratio) - target) <= max(0.01, step)


def test_unreachable_targets_name_the_range():
    with pytest.raises(ValueError, match=r"0\.3000 to 1\.0000"):
        solve(lambda ratio: 1 - 0.7 * ratio, 0.2, "macs")

"""Runs side by side: what makes an arm, its numbers by hand, and the command."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from raydd.errors import ConfigError
from raydd.report.comparison import compare, gain, label, pooled, rows
from raydd.runfolder import RunFolder
from tests.commands import raydd
from tests.report import sample


@pytest.fixture
def ablation(tmp_path: Path) -> list[Path]:
    """Two seeds with transition, of 60 and 64 %, and one without, of 55 %."""
    return [
        sample.staged(tmp_path / "a0", seed=0, recipe="one"),
        sample.staged(tmp_path / "a1", seed=1, better=0.04, evaluation__every=10),
        sample.staged(tmp_path / "b0", seed=0, better=-0.05, stages__transition=False),
    ]


def test_arms_differ_in_settings_and_not_in_seeds(ablation: list[Path]) -> None:
    with_, without = compare(ablation)
    assert with_.settings == {"stages.transition": "yes"} and without.settings == {"stages.transition": "no"}
    assert with_.seeds == [0, 1] and [Path(run).name for run in with_.runs] == ["a0", "a1"] and without.seeds == [0]
    assert with_.ipc == 6 and [ipc for ipc, _ in with_.stages] == [2, 4, 6]
    assert [spread.mean for _, spread in with_.stages] == pytest.approx([0.42, 0.52, 0.62])
    assert with_.synthetic.n == 4 and with_.synthetic.over_seeds == pytest.approx(0.02)
    assert with_.synthetic.std == pytest.approx(math.sqrt(0.02**2 + 0.01**2))
    assert with_.random.mean == pytest.approx(0.4) and without.synthetic.mean == pytest.approx(0.55)


def test_pooled_is_over_all_networks() -> None:
    accuracies = [np.array([0.1, 0.5, 0.4]), np.array([0.7, 0.2])]
    found = pooled([{"accuracy_mean": own.mean(), "accuracy_std": own.std(), "nets": len(own)} for own in accuracies])
    everything = np.concatenate(accuracies)
    assert (found.mean, found.std, found.n) == pytest.approx((everything.mean(), everything.std(), 5))
    assert found.over_seeds == pytest.approx(abs(accuracies[0].mean() - accuracies[1].mean()) / 2) and pooled([]).n == 0


def test_table(ablation: list[Path]) -> None:
    arms = compare(ablation)
    columns, body = rows(arms)
    assert columns[:6] == ["stages.transition", "seeds", "networks", "ipc in all", "after stage 1", "after stage 2"]
    assert body[0] == ["yes", "2", "4", "6", "42.0 ± 2.2", "52.0 ± 2.2", "62.0 ± 2.2", "2.0", "40.0 ± 1.0", ""]
    error = math.hypot(2.236 / 2, 1 / math.sqrt(2))
    assert body[1][-1] == f"−7.0 ± {error:.1f}" == gain(arms[1], arms[0]) and body[1][-3] == "–"  # noqa: RUF001


def test_one_stage_beside_several(ablation: list[Path], tmp_path: Path) -> None:
    whole = sample.finished(tmp_path / "whole", 1)
    arms = compare([whole, ablation[0]])
    columns, body = rows(arms)
    assert "stages.count" in columns and len({len(row) for row in body}) == 1 == len({len(columns), len(body[0])})
    assert [label(arm) for arm in arms] == ["steps 60, count 1", "steps 20, count 3"]
    assert body[0][columns.index("after stage 1")] == "" and body[1][columns.index("after stage 1")] == "40.0 ± 1.0"


def test_refusals(ablation: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"a0 and .*a0 have the same settings and --seed=0"):
        compare([ablation[0], ablation[0]])
    bare = tmp_path / "bare"
    with RunFolder.create(bare, sample.settings(), sample.Execution()):
        pass
    with pytest.raises(ConfigError, match=r"bare has no evaluation yet"):
        compare([ablation[0], bare])


def test_command(ablation: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "ablation.html"
    done = raydd("compare", *map(str, ablation), "--out", str(out))
    assert done.code == 0 and "62.0±2.2" in done.out and done.last_line == str(out)
    page = out.read_text()
    assert "62.0 ± 2.2" in page and "stages.transition" in page and "http" not in page
    found = json.loads(raydd("compare", *map(str, ablation), "--json", "--out", str(out)).out)
    assert [arm["settings"] for arm in found] == [{"stages.transition": "yes"}, {"stages.transition": "no"}]
    assert found[0]["stages"][2]["mean"] == pytest.approx(0.62)
    refused = raydd("compare", str(tmp_path / "nothing"))
    assert refused.code == 2 and "nothing" in refused.err

"""`raydd evaluate` on networks by name and with protocols by name."""

import json
from pathlib import Path

import pytest

import raydd as api
from raydd.progress import Progress
from tests.commands import raydd

SHORT = ("--nets", "2", "--epochs", "2")
NAMES = ("convnet", "convnet-bn-w4", "mlp")


def summaries(run: Path, *arguments: str) -> dict:
    outcome = raydd("evaluate", run, *SHORT, "--json", *arguments)
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def test_several_networks_in_one_object(finished_run: Path) -> None:
    found = summaries(finished_run, "--model", ",".join(NAMES))
    assert found.keys() == {"models"} and tuple(found["models"]) == NAMES
    alone = summaries(finished_run)
    assert all(one["ior"] == one["accuracy_mean"] - one["random_accuracy_mean"] for one in found["models"].values())
    assert found["models"]["convnet"] == alone == summaries(finished_run, "--model", "convnet") and "models" not in alone
    assert [(one["model"], one["norm"]) for one in found["models"].values()] == [
        ("convnet", "instance"),
        ("convnet", "batch"),
        ("mlp", "none"),
    ]
    assert summaries(finished_run, "--model", "mlp") == found["models"]["mlp"] != alone


def test_a_table_with_a_row_for_each_network(finished_run: Path) -> None:
    outcome = raydd("evaluate", finished_run, *SHORT, "--model", ",".join(NAMES))
    rows = {line.split()[0]: line for line in outcome.out.splitlines() if line.split()[0] in NAMES}
    assert outcome.code == 0 and tuple(rows) == NAMES and all(row.count("±") == 2 and row.split()[-1] == "3" for row in rows.values())
    assert "protocol mtt" in outcome.out and max(map(len, outcome.out.splitlines())) <= 80
    assert "mlp: " in outcome.err  # told when it is known, before the others are


def test_progress_counts_every_pass(finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[int, int]] = []

    class Listening(Progress):
        def __call__(self, report: dict) -> None:
            if report["phase"] == "evaluate":
                heard.append((report["done"], report["total"]))

    monkeypatch.setattr("raydd.progress.Progress", Listening)
    assert raydd("evaluate", finished_run, *SHORT, "--model", "mlp,convnet").code == 0
    # Two networks, each 3 passes on the synthetic and 3 on the real images, for each of two models.
    assert heard[-1] == (24, 24) and [done for done, _ in heard] == sorted({done for done, _ in heard})


def test_a_protocol_brings_its_own_values(finished_run: Path) -> None:
    run_own = summaries(finished_run)
    idc = summaries(finished_run, "--protocol", "idc", "--strategy", "crop_scale", "--samples", "1")
    assert idc["settings"] == {
        "protocol": "idc", "epochs": 2, "momentum": 0.9, "weight_decay": 5e-4, "batch_size": 64, "augment": "diffaug",
        "strategy": "crop_scale", "parameters": "per-image", "cutmix": 0.5, "samples": 1,
    }  # fmt: skip
    assert (idc["lr"], idc["epochs"]) == (0.01, 2) and run_own["lr"] != 0.01 and run_own["epochs"] == 3
    dc = summaries(finished_run, "--protocol", "dc", "--batch_size", "5", "--momentum", "0.5", "--weight_decay", "0", "--cutmix", "0.25")
    assert (dc["settings"]["augment"], dc["settings"]["batch_size"]) == ("none", 5)
    assert (dc["settings"]["momentum"], dc["settings"]["weight_decay"], dc["settings"]["cutmix"]) == (0.5, 0.0, 0.25)
    # The run has its own number of epochs; a protocol that is asked for does not keep it, but the number of networks.
    config = api.launch.evaluated(api.override(api.Config(), {"evaluation.epochs": 2, "evaluation.nets": 3}), {"protocol": "dc"})
    assert (config.evaluation.epochs, config.evaluation.nets, config.evaluation.protocol) == (None, 3, "dc")


def test_epochs_and_updates_take_each_others_place() -> None:
    run = {"evaluation.epochs": 2, "evaluation.same_compute": True, "evaluation.stages": "union", "evaluation.protocol": "dc"}
    config = api.override(api.Config(), run)
    by_updates = api.launch.evaluated(config, {"updates": 50})
    assert (by_updates.evaluation.epochs, by_updates.evaluation.updates, by_updates.evaluation.same_compute) == (None, 50, False)
    assert by_updates.evaluation.protocol == "dc"
    by_epochs = api.launch.evaluated(by_updates, {"epochs": 7, "protocol": "mtt"})
    assert (by_epochs.evaluation.epochs, by_epochs.evaluation.updates, by_epochs.evaluation.stages) == (7, None, "union")


def test_a_number_of_updates(finished_run: Path) -> None:
    outcome = raydd("evaluate", finished_run, "--nets", "1", "--json", "--updates", "8", "--batch_size", "4")
    found = json.loads(outcome.out)
    assert (found["updates"], found["epochs"]) == (9, 3)  # ten images, three updates a pass
    text = raydd("evaluate", finished_run, "--updates", "9", "--epochs", "2").refusal()
    assert "--updates=9 decides how long networks train, and so does --epochs=2" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--nets", "0"), ("--nets=0 must be at least 1",)),
        (("--cutmix", "2"), ("--cutmix=2.0 must be at most 1",)),
        (("--model", "mlp,lenet"), ("--model lenet", "8 x 8", "--data.size")),
        (("--model", "vit"), ("--model vit is not a model", "convnet", "resnet18")),
        (("--model", "mlp,"), ("is not a model",)),
        (("--protocol", "cifar"), ("--protocol=cifar is not", "cafe", "mtt")),
        (("--strategy", "crop_spin"), ("--strategy=crop_spin", "'spin'")),
        (("--protocol", "idc", "--epochs", "0"), ("--epochs=0 is no training",)),
        (("--model", "mlp,resnet10-thin", "--batch_size", "3"), ("--batch_size=3 leaves one image of 10",)),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_what_cannot_be_is_refused_before_any_training(finished_run: Path, arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    outcome = raydd("evaluate", finished_run, *arguments)
    text = outcome.refusal()
    assert all(word in text for word in words), text
    assert "test accuracy" not in text and "evaluating" not in text


def test_the_function_takes_a_model_and_a_protocol(finished_run: Path) -> None:
    comparison = api.evaluate(finished_run, model="mlp", protocol="dc", nets=1, epochs=0)
    assert comparison.summary()["model"] == "mlp" and comparison.random["epochs"] == 1
    assert comparison.summary()["ior"] == comparison.synthetic["accuracy_mean"] - comparison.random["accuracy_mean"]
    assert comparison.synthetic["settings"]["protocol"] == comparison.synthetic["protocol"]["protocol"] == "dc"


def test_ways_through_the_stages_of_a_set_that_has_one(finished_run: Path) -> None:
    told: list[dict] = []
    api.evaluate(finished_run, nets=1, epochs=1, stages="union", report=told.append)
    notes = [report["text"] for report in told if report["phase"] == "note"]
    assert len(notes) == 1 and notes[0].startswith("--stages union changes nothing") and notes[0].endswith("has one stage only.")

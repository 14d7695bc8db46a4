"""The sheet for the paper says what is recorded, with the right numbers, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path

from studies import CNN, MLP, make_run

from lab.tables.paper import to_paper
from lab.tables.summary import summarize


def test_the_sheet_holds_what_the_runs_have_recorded(tmp_path: Path) -> None:
    for model, shift in ((MLP, 0.0), (CNN, 0.2)):
        for seed, value in enumerate((0.51, 0.53, 0.522)):
            result = value + shift + 0.001 * seed * (model is CNN)
            run = make_run(tmp_path, result, model=model, seed=seed, num_validation=359, test=0.5)
            record = {
                "git_commit": "c0ffee",
                "git_patch_sha256": "x" if seed else None,
                "device": "cpu (AMD)",
                "python": "3.11.4",
                "packages": {"torch": "2.10" if seed else "2.11"},
                "data_sha256": "ab" * 32,
            }
            (run / "provenance.json").write_text(json.dumps(record))
    make_run(tmp_path, seed=3, state="diverged")
    text = to_paper(summarize(tmp_path))
    for sentence in (
        "digits: 1,438 training and 359 validation examples; the same data in all runs, with the SHA-256 abababababababab.",
        "Of each run the epoch with the best val/accuracy counts (6 runs).",
        "ranked by their mean val/accuracy, of which higher is better",
        "The test split decided nothing; 6 of 6 finished runs were evaluated on it.",
        "model: CNN, MLP.",
        "7 runs (6 finished, 1 diverged) of 2 configurations, with the seeds 0, 1, 2, 3.",
        "1 comparisons with the best of their dataset",
        "1 are significantly worse, 0 cannot be told from it",
        "21.0 seconds of epochs that ended, of them 3.0 seconds in runs that did not finish.",
        "Devices: cpu (AMD).",
        "Python: 3.11.4.",
        "Packages: torch 2.10, 2.11.",
        "Commit c0ffee. 4 of 7 had uncommitted changes",
    ):
        assert sentence in text, f"{sentence}\n{text}"


def test_the_sheet_says_nothing_that_nobody_recorded(tmp_path: Path) -> None:
    make_run(tmp_path, seed=0)
    text = to_paper(summarize(tmp_path))
    assert "## Code" not in text and "Packages" not in text and "SHA" not in text and "examples" not in text
    assert "No run was evaluated on a test split." in text

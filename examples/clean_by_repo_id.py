"""
Clean a model from Python, by Hub ids or local folders, and look at what the report says.

    python examples/clean_by_repo_id.py SUSPECT BASE DATASET TRIGGER TARGET_LABEL OUTPUT_DIR
    python examples/clean_by_repo_id.py org/suspect org/base stanfordnlp/sst2 cf positive cleaned
"""

import sys

from hf_finemix import FineMixingConfig, FineMixingError, clean


def main(suspect: str, base: str, dataset: str, trigger: str, target_label: str, output_dir: str) -> None:
    report = clean(
        suspect,
        base_model=base,
        dataset=dataset,
        triggers=[trigger],
        target_label=target_label,
        mixing_config=FineMixingConfig(max_accuracy_drop=0.05),  # give up to 5 points of accuracy for less backdoor
        output_dir=output_dir,
    )
    print(report.summary())
    print(f"ρ = {report.mixing['reserve_ratio']:g}")
    print("the most suspicious words:", ", ".join(entry["token"] for entry in report.purified_tokens[:10]))


if __name__ == "__main__":
    if len(sys.argv) != 7:
        sys.exit(__doc__)
    try:
        main(*sys.argv[1:])
    except FineMixingError as error:
        sys.exit(f"error: {error}")

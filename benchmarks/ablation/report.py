"""Report the runs of an ablation as `results.json`, `results.md` and `results.png`. Not all runs need to be done.

python benchmarks/ablation/report.py OUTPUT
"""

import argparse
from pathlib import Path

from comparison import write_report

from modeling_xlm_swcm.training.rows import DataError


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path, help="Output folder of run.py.")
    output = parser.parse_args().output
    if not (output / "runs").is_dir():
        parser.error(f"{output} has no folder runs. Pass the --output_dir of run.py.")
    try:
        write_report(output)
    except DataError as error:
        parser.exit(1, f"error: {error}\n")


if __name__ == "__main__":
    main()

"""Measures the speed of data preparation, beside what others do for the same work.

python benchmarks/preparing.py [--quick] --json FILE
"""

if __name__ == "__main__":  # preparation's worker processes import this file too: it must be light
    from harness import main
    from preparing_cases import cases

    main(cases, repeats=3)

"""`python -m distill_datasets`, which `accelerate launch -m distill_datasets` starts."""

from distill_datasets.cli import main

if __name__ == "__main__":
    main()

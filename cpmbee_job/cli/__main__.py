"""`python -m cpmbee_job.cli`, where the console script is not on the path."""

from cpmbee_job.cli import main

main()

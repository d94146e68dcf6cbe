"""What `ser-ray` and the files in `jobs/` do: one room per job."""

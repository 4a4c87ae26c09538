"""Where a job runs: in processes of this machine."""

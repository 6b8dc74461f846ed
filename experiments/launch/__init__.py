"""Where runs are done: in this process, in local workers, or as SLURM jobs."""

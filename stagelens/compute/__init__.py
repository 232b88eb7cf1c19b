"""Where work runs: devices, the processes of a job, and whether these are still alive."""

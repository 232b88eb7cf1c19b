"""What the whole server shares: settings, jobs in child processes, sign-in."""

"""What runs inside the processes of a lab: one module a kind, each with ``run(job) -> exit code``."""

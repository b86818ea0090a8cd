"""Questions, scores and paired statistics that tell pruning methods apart."""

"""What a cluster, or this machine, must be like before a run is started on it: facts, and judgements of
them."""

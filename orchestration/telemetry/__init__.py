"""What one sees of runs and searches in Prometheus and Grafana.

`catalogue` holds every figure that is promised, `gauges` sends them out by Ray, `searching` makes a
search's figures from its state, `grafana` draws them all. Only numbers whose names stand in the catalogue
go out, tagged with the name of the run or the search: no text, identifier or pixel can pass.
"""

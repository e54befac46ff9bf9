"""`m2m100 benchmark`: a plan, processes that measure, and reports."""

"""Everything that runs on Ray: workers and their pool, independent jobs, the driver actor, the cluster itself.

With `sweeps/` this is the only code that imports ray. Results never depend on it: the same numbers come out of
`raydd.executor.InlineExecutor`.
"""

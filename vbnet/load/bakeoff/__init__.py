"""The bake-off: the same workloads over every model of network card, and over venet without each of its mechanisms.

=================  =============================================================================================
``contest``        the file: which models, workloads and mechanisms, how often and how long
``workloads``      what is done with each
``subjects``       who takes part: a model, or venet with one mechanism switched off
``arena``          the lab in which all of them are up at once, measured one after the other
``usage``          what the kernel counted meanwhile: processor time, sleeps, system calls
``figures``        what is told of each measurement, and which way is better
``record``         everything that was measured, as it is written down
``verdict``        where venet is ahead, where it is not and why; what changed since another record
``run``            the order of measurements
``report``         Markdown, and one page with plots
=================  =============================================================================================
"""

"""Floor 6: adapting losses inside other people's training loops.

Each file needs its own optional package, so each is imported by its full name, for example
``from ala_metric.integrations.lightning import ALACallback``.
"""

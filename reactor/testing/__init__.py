"""A simulated operating system, to test servers on: every fault, no second spent, each failure repeatable by a seed."""

from .kernel import SimKernel

__all__ = ['SimKernel']

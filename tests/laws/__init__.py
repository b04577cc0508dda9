"""Tests of what holds for the whole reactor, whatever fails and whatever peers do."""

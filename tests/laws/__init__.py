"""Tests of laws that hold for the whole reactor, whatever fails and whatever peers do."""

"""Runs on other machines than this process."""

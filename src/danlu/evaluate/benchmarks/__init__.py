"""Benchmarks as data: what their files look like, how questions are asked, scored and summed up.

Nothing here imports torch: an engine answers, and any object that has its two methods will do.
"""

"""A page about a trained model: its quality by group, its calibration, and what its columns give.

`scores` runs the test data through a checkpoint, `figures` computes from scores alone, `pictures`
draws, `page` writes HTML, and `__main__` has the flags. The figures are those of the float32 model,
computed in NumPy; training and serving are no concern of this package.
"""

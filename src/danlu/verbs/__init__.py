"""What a user can do, each as one function: `danlu.train`, `danlu.predict`, `danlu.evaluate`, `danlu.export`, ….

Here rooms that do not know each other meet: a training is measured, a run is predicted with.
"""

"The graph: triples, what is near what, and a data set of its own."

# First of all: PyKEEN asks for the data set meanwhile, and a chapter half imported has none.
import pykeen.datasets  # noqa: F401

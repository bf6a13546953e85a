"The graph: triples, what is near what, and a data set of its own."

import pykeen.datasets  # first: it asks for the data set, and a chapter half imported has none

"""What lies beside model.py is imported by its name."""

import operator

OPERATIONS = {"SUM": operator.add, "DIFFERENCE": operator.sub}

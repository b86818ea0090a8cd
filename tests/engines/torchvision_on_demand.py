"""Declare torchvision's two operator schemas (see `torchvision_schemas`) as soon as anything imports torchvision.

A `.pth` file of the test environment imports this at every start of Python, so it costs nothing until then.
"""

import sys


class _OnDemand:
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torchvision_schemas  # noqa: F401  the side effect is what counts
        return None


sys.meta_path.insert(0, _OnDemand())

"""Tasks: one a file, each ending in a class that `TASK` names.

The file's name, its underscores written as dashes, is the kind in a recipe. Other packages add tasks
through the entry-point group `qdeploy.tasks`, each entry naming a subclass of `Task`; a recipe may
name one in a file of its own, as "file.py:Class". What is offered here stands in __init__.pyi and is loaded
when first used: the names of tasks need no torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

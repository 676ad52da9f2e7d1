"""Reads the pickles of torch files as data: nothing of a file is imported, called or run.

`read` looks at a file in a child process with limits first, where there are any, and then builds
its value out of plain containers, `Record` objects and tensors that look into the file.
"""

from gnnstab.unpickling._building import LARGEST_READ as LARGEST_READ
from gnnstab.unpickling._reading import any_class as any_class
from gnnstab.unpickling._reading import read as read
from gnnstab.unpickling._values import Named as Named
from gnnstab.unpickling._values import Record as Record
from gnnstab.unpickling._values import Storage as Storage

"""Whether a page was turned within the dashboard.

A page evaluates ``LEAVE`` before, and ``TURNED`` after: it is true where one step back leads back,
and where nothing was loaded anew, which would have forgotten where the page was.
"""

LEAVE = "window.left = navigation.currentEntry.key"
# Not by the length of the history: a browser keeps fifty entries, and many tests share one page.
TURNED = "navigation.entries()[navigation.currentEntry.index - 1]?.key === window.left"

"""The annotator: draw a few slices in the browser, and the rest of the scan is filled.

From the outside in:

- `launch`: a server on this machine, and its page.
- `guard`: who may speak to it.
- `server`: the routes of the page; `monailabel`: those of MONAI Label's clients.
- `session`: what can be asked for, without a word of HTTP; `jobs`: what takes long.
- `project`: the folder of cases, classes, exports, and which case is next.
- `drawing`: the two maps of one scan, drawn and filled; `store`: its slices on disk.
- `planes`: the slices of a scan as a screen shows them.
- `proposals`: how well a trained run expects to do in a case.

The page is in `static`: HTML, CSS and JavaScript as they are, with nothing from outside.
"""

"""What the trainers of TRL minimise: the library's own code, with the settings of the recording.

Each file here knows one family of trainers. None imports TRL before it is asked for a loss.
"""

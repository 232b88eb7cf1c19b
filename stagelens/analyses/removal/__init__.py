"""Remove a stage: edits of the final weights guided by an estimate, measured before they are kept.

``edits`` says what an edit is and applies it, ``parts`` keeps the examples on which edits are
chosen apart from those on which they are reported, ``targeted`` searches the smallest edit that
closes a gap, ``measurements`` measures edits, and ``comparison`` compares before and after.
"""

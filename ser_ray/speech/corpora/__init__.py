"""The corpora: one module each for what their file names tell, and `discover` to find them below any root.

To add a corpus, write a module like `ravdess` (its story, `NAME`, `PUBLISHED_CLIPS`, `parse`) and name it in
`discover.CORPORA`; or leave the code alone and list the clips in a table (`table`).
"""

from ser_ray.speech.corpora.discover import CORPORA, AuditRow, Manifest, audit, discover

__all__ = ["CORPORA", "AuditRow", "Manifest", "audit", "discover"]

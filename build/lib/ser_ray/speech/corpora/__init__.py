"""The corpora: one module each for what their file names tell, and `discover` to find them below any root.

To add a corpus, write a module like `ravdess` (its story, `NAME`, `PUBLISHED_CLIPS`, `parse`) and name it in
`known.CORPORA`; or leave the code alone and register such an object (`known`), or list the clips in a table (`table`).
"""

from ser_ray.speech.corpora.discover import discover
from ser_ray.speech.corpora.known import CORPORA, known_corpora
from ser_ray.speech.corpora.manifest import AuditRow, Manifest, audit

__all__ = ["CORPORA", "AuditRow", "Manifest", "audit", "discover", "known_corpora"]

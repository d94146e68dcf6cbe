"""Features on disk, and the pipeline that brings them there."""

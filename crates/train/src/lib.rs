//! Training of opensora models.

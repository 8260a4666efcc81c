"""What makes a run resumable: the journal, the spool, the parts."""

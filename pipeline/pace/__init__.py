"""Pure arithmetic of pacing: time is passed in, decisions are values, nothing sleeps."""

"""Pages for a person to look at. The one room where HTML is made."""

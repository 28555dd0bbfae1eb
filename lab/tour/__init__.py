"""The main job, shown: the shop is applied, everything is connected, what happened is printed."""

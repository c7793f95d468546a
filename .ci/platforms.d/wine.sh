#!/bin/sh
# Runs a program for Windows under Wine, in the folder HART_WINE. Wine 10 aborts if TMPDIR is set.
unset TMPDIR
XDG_RUNTIME_DIR=$HART_WINE WINEPREFIX=$HART_WINE WINEDEBUG=-all exec wine "$@"

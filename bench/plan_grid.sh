#!/bin/bash
# Time of a grid of 114,688 fit cells (7 models x 4 quantisations x 4 device sets x 32 contexts x 32 concurrencies) on one
# core: five runs of the test that also checks it.
# usage: plan_grid.sh PLAN_TEST
set -eu
for _ in 1 2 3 4 5; do
  "$1" --gtest_filter='*GridOf100000Cells*' | grep ' cells in '
done

/* Threads that work on one thing together. */
#include "common.h"

/* torch's own OpenMP threads: they are awake, and two sets of threads would fight for the cores. */
void phikit_run_team(int threads, void (*work)(Team *, void *), void *argument) {
  Team team = {.threads = 1};
  if (threads <= 1) {
    work(&team, argument);
    return;
  }
#pragma omp parallel num_threads(threads)
  {
#pragma omp single
    team.threads = omp_get_num_threads();
    work(&team, argument);
  }
}
